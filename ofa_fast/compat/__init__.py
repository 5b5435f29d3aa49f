"""The entry points of published tools, with their signatures, defaults and results: change the import, keep the script.

``ofa_fast.compat.wechsel`` for wechsel 0.0.4, ``ofa_fast.compat.deepfocus`` for deepfocus 1.0.1 (FOCUS), and
``ofa_fast.compat.ofa`` for the functions of cisnlp/ofa.
"""
