"""Networks by family; no network knows a method."""
