defmodule DSPex.PythonBridge.Error do
  # In step with errors.py of the Python package, which a test compares.
  @policies [
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
  ]

  @rows Enum.map_join(@policies, "\n", fn {code, {category, severity, recovery}} ->
          "| `#{inspect(code)}` | #{category} | #{severity} | #{recovery} |"
        end)

  @moduledoc """
  The error of a call: the error half of a worker's reply, or a failure that the client detected.

    * `code` - an atom from the table below; `:internal` for a code that is not in the table
    * `wire_code` - the code as the worker sent it; `nil` if the client detected the failure
    * `message` - one readable line
    * `category`, `severity`, `recovery` - how a program should react, as atoms
    * `details` - a map with string keys, for example `"path"`, `"retry_after"` (seconds),
      `"exit_status"`

  | code | category | severity | recovery |
  |---|---|---|---|
  #{@rows}

  An `:lm_error` whose details have `"retry_after"` or `"retryable"` comes with the recovery
  `:backoff_retry`.
  """

  alias DSPex.PythonBridge.Text

  @codes Map.new(@policies, fn {code, _} -> {Atom.to_string(code), code} end)

  # The values that a reply may carry; for any other the table's value is used.
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
  Returns the error of a code, with the category, severity and recovery of the table.

      iex> error = DSPex.PythonBridge.Error.new(:deadline_exceeded, "no reply in time")
      iex> {error.category, error.severity, error.recovery}
      {:timeout, :major, :backoff_retry}
  """
  @spec new(atom(), String.t(), map()) :: t()
  def new(code, message, details \\ %{}) do
    {category, severity, recovery} = Keyword.fetch!(@policies, code)

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
  Returns the error that an error reply carries.

  What the reply leaves out comes from the table. A reply with nothing but an `error` string, as
  workers of other packages send it, becomes `:internal`.

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

  @doc "Returns all codes of the table."
  @spec codes() :: [atom()]
  def codes, do: Keyword.keys(@policies)

  # A worker of another package may send a traceback as the error.
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
