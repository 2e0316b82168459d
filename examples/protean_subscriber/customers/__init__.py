"""Our side: customers, who are told of by the accounts service's events."""
