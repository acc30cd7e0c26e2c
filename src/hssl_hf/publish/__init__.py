"""Publishing a trained model: export, parity check, model card, upload to the Hub."""
