"""What tests share: networks, references, graphs."""
