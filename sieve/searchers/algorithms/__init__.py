"""The searchers: each yields candidates, the one that it would choose first."""
