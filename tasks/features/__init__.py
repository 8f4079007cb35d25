"""Features of photographs (CNN) and of captions (LSTM)."""
