"""A model on the tasks of lm-eval, by our decoder: `bilevel evaluate`.

lm-eval (the Evaluation Harness of EleutherAI) asks a language model three things: how likely a text
is after another one, how likely a whole text is, and what follows a text. Its tasks, written as
YAML files, and its scores are used as they are; PyTorch is not needed.
"""
