"""How each benchmark asks its judge, and what it makes of the replies."""
