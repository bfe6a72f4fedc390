"""Attaches the errors of a parity test to its report."""

import pytest

from tests.parity import comparison


@pytest.fixture(autouse=True)
def _parity_errors(request):
    """Errors become properties of the test, which xdist's workers send home."""
    properties = request.node.user_properties
    stop = comparison.listen(lambda error: properties.append(("parity_error", error)))
    yield
    stop()
