"""The legs of an audit that need the models themselves, output and behaviour, and the benchmark they use."""
