"""Academic tasks."""
