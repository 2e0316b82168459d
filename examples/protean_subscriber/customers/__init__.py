"""The customers service, which registers the users of the accounts service."""
