"""Why a view of a model is not shown."""


class InvariantError(RuntimeError):
    """A view is not shown, because what must hold of it does not; the text says what."""


class NoPartError(ValueError):
    """A view is of a part that the model does not have, or not in a form that is known here."""


class NoSumError(ValueError):
    """The model's stream or head is not of a kind whose logits are a sum over what its components write: a wrong request."""
