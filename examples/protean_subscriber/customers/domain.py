"""The domain. Its settings are in domain.toml."""

from protean import Domain

domain = Domain(name="Customers")
