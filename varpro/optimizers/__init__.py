"""Outer steps on the reduced risk R(w) = min_u L(w, u), one optimizer a file; any solver with ``reduced`` will do."""
