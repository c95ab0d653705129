"""What came out, for people: studies that compare methods, the demonstration, the page of some runs.

This package and the verb `study` share a name, so `moce.study` is both: `moce.study("compare", out=...)` is the verb.
"""

import sys
from collections.abc import Callable
from inspect import Signature, signature  # the name inspect is that of a module of this package
from types import ModuleType
from typing import Any


class _PackageAndVerb(ModuleType):
    """A package that can be called."""

    @property
    def verb(self) -> Callable[..., Any]:
        """The verb."""
        from moce.study.studies import study

        return study

    @property
    def __signature__(self) -> Signature:
        return signature(self.verb)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.verb(*arguments, **options)


sys.modules[__name__].__class__ = _PackageAndVerb
