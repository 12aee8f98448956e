"""HTML template, style and script of a report."""
