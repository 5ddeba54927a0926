{{/* What the operator may do in a namespace that it looks after, and why. Nothing else, and no reading of Secrets: its key is at home. */}}
{{- define "multislo.rights" -}}
# The fleets: read what is wanted, report what is.
- apiGroups: [multislo.dev]
  resources: [multisloservings]
  verbs: [get, list, watch]
- apiGroups: [multislo.dev]
  resources: [multisloservings/status]
  verbs: [patch]
# Engines and routers.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# The way around a policy that refuses every write of a Deployment: counts go on.
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
# Their pods: gates, drains, the move from tier to tier; delete is for the one that makes room in a roll-out; create is for dry runs of a
# new template (the operator makes no pod of its own).
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# What belongs to a fleet beside them. A profile may come in a ConfigMap of the user's.
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, create, patch, delete]
# A router's token is derived and so need never be read back.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# Which installation looks after the fleets of a namespace.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [multislo-fleets]
  verbs: [get, update, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# What the kubelet says of a pod that does not come up: a missing Secret of a volume is told nowhere else.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
{{- end }}
