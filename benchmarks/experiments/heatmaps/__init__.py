"""Where networks look: heat maps as figures (`explain`) and against objects (`localise`), SPEC 6.3."""
