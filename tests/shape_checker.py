"""What checks the types and shapes in moce's signatures during the tests: beartype, with an int welcome as a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
