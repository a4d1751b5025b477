"""What we know of a user: log contracts, daily snapshots, Feast definitions, and reading features back."""
