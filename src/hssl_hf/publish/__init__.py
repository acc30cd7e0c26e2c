"""From a trained model to what everyone can load: export, parity, model cards, the Hub."""
