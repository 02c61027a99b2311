defmodule DSPex.PythonBridge.Error do
  @moduledoc """
  What a call failed with: the error half of a worker's reply, or what the client found itself.

    * `code` - an atom of the closed table below, `:internal` for a code that is not in it
    * `wire_code` - the code as the worker sent it, `nil` where the client found the error
    * `message` - one readable line
    * `category`, `severity`, `recovery` - what a program should make of it, as atoms
    * `details` - a map with string keys: what a program needs to react (`"path"`,
      `"retry_after"` in seconds, `"exit_status"`, …)

  | code | category | severity | recovery |
  |---|---|---|---|
  | `:invalid_frame` | communication | major | immediate_retry |
  | `:frame_too_large`, `:reply_too_large`, `:quota_exceeded` | resource | minor | abandon |
  | `:store_failed` | resource | major | backoff_retry |
  | `:overloaded` | resource | major | failover |
  | `:circuit_open` | resource | critical | circuit_break |
  | `:invalid_request`, `:unknown_command`, `:invalid_args`, `:duplicate_id`, `:program_not_found`, `:program_exists`, `:lm_not_configured`, `:cancelled`, `:not_allowed` | request | warning | abandon |
  | `:not_encodable`, `:handler_error`, `:lm_error` | python | major | abandon |
  | `:session_not_found`, `:session_lost` | session | minor | immediate_retry |
  | `:deadline_exceeded` | timeout | major | backoff_retry |
  | `:worker_crashed` | connection | major | backoff_retry |
  | `:internal` | system | critical | abandon |
  """

  alias DSPex.PythonBridge.Text

  @policies %{
    invalid_frame: {:communication, :major, :immediate_retry},
    frame_too_large: {:resource, :minor, :abandon},
    reply_too_large: {:resource, :minor, :abandon},
    quota_exceeded: {:resource, :minor, :abandon},
    store_failed: {:resource, :major, :backoff_retry},
    overloaded: {:resource, :major, :failover},
    circuit_open: {:resource, :critical, :circuit_break},
    invalid_request: {:request, :warning, :abandon},
    unknown_command: {:request, :warning, :abandon},
    invalid_args: {:request, :warning, :abandon},
    duplicate_id: {:request, :warning, :abandon},
    program_not_found: {:request, :warning, :abandon},
    program_exists: {:request, :warning, :abandon},
    lm_not_configured: {:request, :warning, :abandon},
    cancelled: {:request, :warning, :abandon},
    not_allowed: {:request, :warning, :abandon},
    not_encodable: {:python, :major, :abandon},
    handler_error: {:python, :major, :abandon},
    lm_error: {:python, :major, :abandon},
    session_not_found: {:session, :minor, :immediate_retry},
    session_lost: {:session, :minor, :immediate_retry},
    deadline_exceeded: {:timeout, :major, :backoff_retry},
    worker_crashed: {:connection, :major, :backoff_retry},
    internal: {:system, :critical, :abandon}
  }

  @codes Map.new(@policies, fn {code, _} -> {Atom.to_string(code), code} end)

  # Words of the policy that a reply may carry; others fall back to the table's.
  @words ~w(initialization connection communication timeout resource health_check session python
            request system critical major minor warning immediate_retry backoff_retry
            circuit_break failover abandon)a
         |> Map.new(&{Atom.to_string(&1), &1})

  @enforce_keys [:code, :message, :category, :severity, :recovery]
  defexception [:code, :message, :category, :severity, :recovery, :wire_code, details: %{}]

  @type t :: %__MODULE__{
          code: atom(),
          message: String.t(),
          category: atom(),
          severity: atom(),
          recovery: atom(),
          wire_code: String.t() | nil,
          details: %{optional(String.t()) => term()}
        }

  @doc """
  The error of a code of the table.

      iex> error = DSPex.PythonBridge.Error.new(:deadline_exceeded, "no reply in time")
      iex> {error.category, error.severity, error.recovery}
      {:timeout, :major, :backoff_retry}
  """
  @spec new(atom(), String.t(), map()) :: t()
  def new(code, message, details \\ %{}) do
    {category, severity, recovery} = Map.fetch!(@policies, code)

    %__MODULE__{
      code: code,
      message: message,
      category: category,
      severity: severity,
      recovery: recovery,
      details: details
    }
  end

  @doc """
  The error that an error reply carries. What the reply leaves out comes from the table, so that
  replies of the plain protocol, which have an `error` string only, become `:internal`.

      iex> reply = %{"error" => "Program not found: X", "code" => "program_not_found"}
      iex> DSPex.PythonBridge.Error.from_reply(reply).code
      :program_not_found
  """
  @spec from_reply(map()) :: t()
  def from_reply(reply) do
    wire_code = reply["code"]
    {line, details} = line(reply["error"], reply["details"] || %{})
    error = new(Map.get(@codes, wire_code, :internal), line, details)

    %{
      error
      | wire_code: wire_code,
        category: Map.get(@words, reply["category"], error.category),
        severity: Map.get(@words, reply["severity"], error.severity),
        recovery: Map.get(@words, reply["recovery"], error.recovery)
    }
  end

  @doc "All codes of the table."
  @spec codes() :: [atom()]
  def codes, do: Map.keys(@policies)

  # A worker that is not ours may send a traceback as the error.
  defp line(message, details) when is_binary(message) do
    if String.contains?(message, ["\n", "\r"]) do
      line = if message =~ ~r/\A\s*Traceback/, do: &Text.raised/1, else: &Text.line/1
      {line.(message), Map.put_new(details, "text", Text.valid(message))}
    else
      {Text.valid(message), details}
    end
  end

  defp line(other, details), do: {inspect(other), details}
end
