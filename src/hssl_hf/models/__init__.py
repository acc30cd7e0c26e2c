"""The transformers classes: a `configuration_<name>.py` and a `modeling_<name>.py` for every method."""
