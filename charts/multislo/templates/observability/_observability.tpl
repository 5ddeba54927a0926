{{/* Labels of the objects of this folder. */}}
{{- define "multislo.observability.labels" -}}
app.kubernetes.io/name: multislo
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: observability
app.kubernetes.io/part-of: multislo
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
