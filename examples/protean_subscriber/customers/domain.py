"""The domain; its settings are in domain.toml beside it."""

from protean import Domain

domain = Domain(name="Customers")
