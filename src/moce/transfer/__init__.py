"""What an encoder is worth on other pictures: nearest neighbours, linear probe, fine-tuning."""
