"""The numpy reference against the libraries that the formats are named after, bit for bit."""
