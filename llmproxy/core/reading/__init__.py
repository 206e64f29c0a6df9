"""Reading what an answer used, from a copy of its bytes, whatever shape and whatever pieces they come in."""
