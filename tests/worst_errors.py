"""`--worst-errors`: how far the parity tests of a run were from their references.

Tests attach ("parity_error", error / scale) to their reports as user properties.
"""

import collections


def errors_of_tests(reports):
    """Node id -> its recorded errors, for tests that recorded any."""
    errors = {}
    for report in reports:
        if getattr(report, "when", None) == "call":
            found = [v for name, v in report.user_properties if name == "parity_error"]
            if found:
                errors[report.nodeid] = found
    return errors


def table(errors, every_test=False):
    """Lines of the summary: the worst of each file, or of each test."""
    groups = collections.defaultdict(list)
    for nodeid, values in errors.items():
        file, _, test = nodeid.partition("::")
        group = nodeid if every_test else file
        groups[group] += [(value, test) for value in values]
    lines = []
    for group, found in sorted(groups.items()):
        # A NaN is the worst of all.
        worst, test = max(found, key=lambda each: (each[0] != each[0], each))
        where = "" if every_test else f"  {test}"
        lines.append(f"{worst:9.2e} of {len(found):4d}  {group}{where}")
    return lines
