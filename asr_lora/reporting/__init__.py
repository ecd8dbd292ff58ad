"""Results as terminal tables, charts, pages and model cards."""
