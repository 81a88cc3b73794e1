package handoff

default decision := {"effect": "deny", "reasons": [{"code": "policy_denied", "message": "nothing allows this"}]}
