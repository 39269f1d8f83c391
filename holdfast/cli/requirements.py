"""What several verbs do with requirements: check them first, and say at the end what became of
them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, NotMet
from ..terminal import tell


def check_required(requirements: Sequence[str] | None, junit: Path | None) -> None:
    """Before an evaluation begins: that its requirements can be judged, and the file be written.

    Raises:
        InputError: one cannot be read, or is of no figure of an evaluation; a file without any; a
            file that Holdfast did not write.
    """
    if requirements:
        from ..report.requirements import checked_for_evaluation

        checked_for_evaluation(requirements)
    check_junit(requirements, junit)


def check_junit(requirements: Sequence[str] | None, junit: Path | None) -> None:
    """InputError where a file of outcomes cannot be written."""
    if junit is None:
        return
    if not requirements:
        raise InputError("--junit needs a requirement: add one, such as --require 'robust>=40%'")
    from ..report.requirements import is_junit
    from ..runs.files import check_named

    check_named(junit, is_junit)


def show_required(
    run: Path, requirements: Sequence[str], junit: Path | None, as_json: bool = False
) -> None:
    """Print a line for each requirement, and write the file.

    Raises:
        NotMet: not all are met; exit status 3.
        InputError: as `holdfast.require`.
    """
    from ..report.requirements import is_junit, require
    from ..report.requirements import junit as junit_of
    from ..runs.files import write_named

    found = require(run, requirements)
    if as_json:
        print(json.dumps({"run": str(run), **found.to_dict()}, indent=2))
    else:
        for outcome in found.outcomes:
            tell(str(outcome))
    if junit is not None:
        write_named(junit, junit_of(found, str(run)), is_junit)
    failed = sum(not outcome.met for outcome in found.outcomes)
    if failed:
        of = f"{failed} of {len(found.outcomes)} requirements {'is' if failed == 1 else 'are'}"
        raise NotMet(f"{of if len(found.outcomes) > 1 else 'the requirement is'} not met by {run}")
