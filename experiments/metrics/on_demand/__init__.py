"""Metrics that a run or an audit takes where `evaluation.metrics` names them."""
