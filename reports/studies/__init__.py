"""The Markdown table of each published study, rendered from its rows."""
