"""What an audit writes: the result and its schema, the page, the summary, and exports for other tools."""
