"""`loom-node demo`: for every text file below a folder, the most similar other file.

What is computed, so that anyone can check it:

- a *text file* has no NUL byte in its first 8,192 bytes;
- its *tokens* are the matches of `[A-Za-z_][A-Za-z0-9_]+` in the file decoded as UTF-8 with replacement, lower-cased;
- a token's *weight* in a file is count x (ln((1 + n) / (1 + df)) + 1): n text files, df of them hold the token;
- a file's row of weights is divided by its Euclidean length;
- the *similarity* of two files is the dot product of their rows; scores within 1e-12 are a tie, and a tie goes to the
  path that comes first, in code-point order.

`corpus` finds and reads files, `tokens` counts, `tfidf` weighs, `score` compares; `check` does it all in another way.
"""
