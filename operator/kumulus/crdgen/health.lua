-- What Argo CD shows of an object of Kumulus: what its conditions say (https://argo-cd.readthedocs.io, "Resource Health").
local function condition(name)
  if obj.status ~= nil and obj.status.conditions ~= nil then
    for _, found in ipairs(obj.status.conditions) do
      if found.type == name then
        return found
      end
    end
  end
  return {}
end

local function health(status, message)
  return { status = status, message = message or "" }
end

local ready, stalled, reconciling = condition("Ready"), condition("Stalled"), condition("Reconciling")
local annotations = obj.metadata.annotations or {}

if stalled.status == "True" then
  return health("Degraded", stalled.message)
end
if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", ready.message or "It is being deleted.")
end
if annotations["kumulus.io/paused"] == "true" then
  return health("Suspended", "The annotation kumulus.io/paused tells Kumulus to leave it alone.")
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "Kumulus has not answered to what is wanted now.")
end
if reconciling.status == "True" then
  return health("Progressing", reconciling.message)
end
if ready.status == "Unknown" then
  return health("Degraded", ready.message)
end
if ready.status == "False" then
  return health("Suspended", ready.message)
end
return health("Healthy", ready.message)
