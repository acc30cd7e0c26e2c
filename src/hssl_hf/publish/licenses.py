"""Licenses of weights: which a model may have that was trained from others, and which forbid commercial use.

Names are those of the Hub's model cards. This compares names of licenses; it is no legal advice.
"""

import re

from hssl_hf.errors import UserError

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")
UNKNOWN = "unknown"  # a name that the Hub accepts for a license that nothing is known of
PUBLIC_DOMAIN = {"0bsd", "cc0-1.0", "pddl", "unlicense", "wtfpl"}
PERMISSIVE = {  # which require attribution only
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "cc",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "isc", "mit", "ms-pl", "ncsa", "postgresql", "zlib",
}  # fmt: skip
CREATIVE_COMMONS = re.compile(r"cc-by(-nc)?(-sa|-nd)?(-[\d.]+)?(-\w+)?")
NON_COMMERCIAL = re.compile(r"(?<![a-z])(nc|non[-_ ]?commercial|research|academic|amlr)(?![a-z])", re.IGNORECASE)


class LicenseError(UserError):
    """A license that the origin of the weights does not allow."""


def is_non_commercial(*names: str | None) -> bool:
    """Whether a name of a license, or the name in words of one that the Hub lists as "other", excludes commercial use."""
    return any(NON_COMMERCIAL.search(name) for name in names if name)


def conditions(license: str) -> frozenset[str]:
    """What a license requires of models that follow; of one that is not known here, that they keep it."""
    name = license.strip().lower()
    if name in PUBLIC_DOMAIN:
        return frozenset()
    if name in PERMISSIVE:
        return frozenset({"attribution"})
    if match := CREATIVE_COMMONS.fullmatch(name):
        return frozenset({"attribution", *(part for part in match.groups()[:2] if part)})
    return frozenset({"attribution", name})
