"""Who calls: from a token or a certificate to a tenant, and to what it may call.

Reading order: `policy` (what each method asks for), `settings` (the file that says who there is), `jwks` and `jwts`
(tokens of an issuer), `certificates`, `gate` (all of it for one call), `files` (read again when they change).
"""
