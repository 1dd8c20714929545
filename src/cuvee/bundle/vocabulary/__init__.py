"""Tokenizers as data: read a vocabulary, plan the output's rows, write the output's files.

Nothing here imports torch, NumPy or transformers; SentencePiece is imported only for folders that have
nothing else.
"""
