"""Template, style and script of the report's page."""
