"""The BERT that Triton server runs: checkpoint in, one TorchScript file over packed tokens out.

Importing this package is light; :mod:`bertron_torchscript.bert` and
:mod:`bertron_torchscript.export` bring torch.
"""
