"""The tensors that clients send and get, as typed requests and answers. No Triton in here."""
