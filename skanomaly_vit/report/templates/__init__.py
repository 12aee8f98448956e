"""The page of a report: its HTML template, style and script."""
