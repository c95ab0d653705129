"""SCHEME://NAME?option=value&...: what a person writes to name pictures and models that are not simply files."""

from urllib.parse import parse_qsl, unquote

from moce.errors import UserError, did_you_mean


def parts_of(uri: str, scheme: str, mark: str = "://") -> tuple[str, dict[str, str]]:
    """(NAME, options) with percent-encoding undone; a plus stays a plus, as in the paths of c++."""
    if not uri.startswith(f"{scheme}{mark}"):
        raise UserError(f"'{uri}': write {scheme}://NAME, with two slashes.")
    name, _, query = uri.removeprefix(f"{scheme}{mark}").partition("?")
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise UserError(f"'{uri}' gives an option twice.")
    if not name:
        raise UserError(f"'{uri}' names nothing: write {scheme}{mark}NAME.")
    return unquote(name), options


def refuse_unknown(uri: str, options: dict[str, str], known: list[str]) -> None:
    """UserError with the options that there are, for one that there is not."""
    for option in options:
        if option not in known:
            raise UserError(
                f"'{uri}': there is no option '{option}', only {', '.join(known)}.{did_you_mean(option, known)}"
            )


def switch(uri: str, option: str, text: str) -> bool:
    """true or false, as a word."""
    word = text.lower()
    if word not in ("true", "false", "1", "0"):
        raise UserError(f"'{uri}': {option} must be true or false, not '{text}'.")
    return word in ("true", "1")
