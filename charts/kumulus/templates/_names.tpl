{{- /* The policies and roles know Kumulus' accounts by this namespace. */}}
{{- define "kumulus.namespace" -}}
{{- if ne .Release.Namespace "kumulus-system" }}
{{- fail (printf "Kumulus is installed in the namespace kumulus-system, which its policies know it by: use --namespace kumulus-system, not %s" .Release.Namespace) }}
{{- end }}
{{- .Release.Namespace }}
{{- end }}

{{- define "kumulus.labels" -}}
app.kubernetes.io/name: kumulus
app.kubernetes.io/part-of: kumulus
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* What never changes of a component's labels: selectors are made of them. */}}
{{- define "kumulus.selector" -}}
app.kubernetes.io/name: kumulus
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "kumulus.image" -}}
{{- with .Values.image }}
{{- if .registry }}{{ trimSuffix "/" .registry }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The file of settings of a process, as kumulus.runtime.settings reads it. */}}
{{- define "kumulus.settings" -}}
{{- $off := list }}
{{- $settings := dict }}
{{- range $name, $module := .root.Values.modules }}
{{- if hasPrefix (printf "%s." $.part) $name }}
{{- if not $module.enabled }}
{{- $off = append $off $name }}
{{- else if $module.settings }}
{{- $_ := set $settings $name $module.settings }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml (dict "include" (list .part) "exclude" $off "modules" $settings) }}
{{- end }}

{{- define "kumulus.pod.security" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kumulus.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "kumulus.placement" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "kumulus.environment" -}}
- {name: KUMULUS_CONFIG, value: /etc/kumulus/kumulus.yaml}
- {name: KUMULUS_HTTP_ADDRESS, value: "0.0.0.0"}
- {name: KUMULUS_HTTP_PORT, value: "8080"}
- {name: KUMULUS_LOG_LEVEL, value: {{ .Values.logs.level | quote }}}
- {name: KUMULUS_LOG_FORMAT, value: {{ .Values.logs.format | quote }}}
{{- end }}

{{- define "kumulus.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
