"""A metric of one's own: `unforgotten run tiny --metric examples/own_metric.py:answer_length`."""


def answer_length(model, probes, settings):
    """Mean length of the answers to the forget questions, characters."""
    answers = model.continuations(probes.forget_prompts, settings.evaluation.answer_tokens)
    return [len(answer) for answer in answers]
