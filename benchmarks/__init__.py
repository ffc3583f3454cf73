"""How fast everything is, beside librosa, PyTorch, ONNX Runtime, openSMILE and the machine itself.

`featurestore bench` runs them; `README.md` beside this file says what each one is.
"""
