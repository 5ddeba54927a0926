{{- define "multislo.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What selectors go by; the fleets' NetworkPolicies let pods with name and component in. */}}
{{- define "multislo.selector" -}}
app.kubernetes.io/name: multislo
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "multislo.labels" -}}
{{ include "multislo.selector" . }}
app.kubernetes.io/part-of: multislo
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "multislo.metadata" -}}
name: {{ include "multislo.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "multislo.labels" . | nindent 2 }}
{{- end }}

{{- define "multislo.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "multislo.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ required "serviceAccount.name must name a ServiceAccount where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "multislo.image" -}}
{{- if .Values.image.digest }}{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "multislo.keySecret" -}}
{{- default (printf "%s-key" (include "multislo.fullname" .)) .Values.key.existingSecret }}
{{- end }}

{{/* The namespaces that the operator looks after, as JSON; an empty list: all. */}}
{{- define "multislo.namespaces" -}}
{{- if .Values.watchNamespaces }}{{ .Values.watchNamespaces | uniq | toJson }}
{{- else if .Values.rbac.namespaced }}{{ list .Release.Namespace | toJson }}
{{- else }}[]
{{- end }}
{{- end }}
