defmodule DSPex.PythonBridge.PoolErrorHandler do
  # In step with bridge/pool/policy.py of the Python package, which tests/vectors/policy.json checks.
  #
  # later: the recoveries after attempt 2, 3, …; the last one holds from then on. by_severity: take
  # the place of all others. moves?: a repeated call goes to another slot. slot?: counts against the
  # slot. breaker?: counts against the breaker of the model's provider, if the call was started and
  # may be repeated.
  @rule %{later: [], by_severity: %{}, moves?: false, slot?: false, breaker?: false}
  @by_severity %{critical: :circuit_break, major: :failover}

  @rules [
           initialization:
             {:critical, :immediate_retry, later: [:circuit_break], moves?: true, slot?: true},
           connection:
             {:major, :backoff_retry,
              by_severity: %{critical: :circuit_break}, moves?: true, slot?: true},
           # A worker whose frames cannot be read is killed, which is `connection`. A single frame
           # that was refused, or a reply that does not decode, may be due to the values in it, so
           # it does not count against the slot.
           communication: {:major, :immediate_retry, later: [:circuit_break], moves?: true},
           timeout: {:major, :backoff_retry, breaker?: true},
           resource: {:minor, :abandon, by_severity: @by_severity},
           health_check:
             {:minor, :backoff_retry, later: [:backoff_retry, :failover], slot?: true},
           session: {:minor, :immediate_retry, []},
           python: {:major, :abandon, breaker?: true},
           request: {:warning, :abandon, []},
           system: {:critical, :abandon, []},
           # Codes that differ from their category.
           overloaded: {:major, :failover, by_severity: @by_severity},
           store_failed: {:major, :backoff_retry, []},
           circuit_open: {:critical, :circuit_break, []}
         ]
         |> Map.new(fn {key, {severity, recovery, more}} ->
           {key,
            @rule |> Map.merge(Map.new(more)) |> Map.merge(%{severity: severity, first: recovery})}
         end)

  @moduledoc """
  Decides what to do after an error: how serious it is, whether to repeat the call, where, and when.

      iex> alias DSPex.PythonBridge.{Error, PoolErrorHandler}
      iex> error = Error.new(:worker_crashed, "the worker has ended")
      iex> decision = PoolErrorHandler.decide(error, idempotent: true)
      iex> {decision.severity, decision.recovery, decision.repeat, decision.delay}
      {:major, :backoff_retry, :another_slot, 0}
      iex> PoolErrorHandler.decide(error, idempotent: false).repeat
      nil

  A decision has

    * `category`, `severity` (`:critical`, `:major`, `:minor`, `:warning`) and `recovery`
      (`:immediate_retry`, `:backoff_retry`, `:circuit_break`, `:failover`, `:abandon`)
    * `repeat` - where to repeat the call: `:same_slot` or `:another_slot`; `nil` if the error is
      final
    * `delay` - how long to wait before that, in ms
    * `against_slot` - whether the failure counts towards the ejection of the slot
    * `against_breaker` - whether it counts in the circuit breaker of the model's provider
      (`DSPex.PythonBridge.CircuitBreaker`)

  ## Rules

    * A call that may have run is repeated only if its command is idempotent. A call that two
      workers had when they died is not sent a third time.
    * A call is repeated at most three times at once, after 0, 100 and 200 ms; at most five times
      after a backoff (`DSPex.PythonBridge.Backoff.exponential/2`), the first of which is left out
      if the worker has ended; at most once because of an overload, on another slot.
    * After more than three attempts an error is one step more serious. If all workers fail in the
      same way it is critical. A critical error is final after more than two attempts.
    * An error of a handler or a model is repeated only if its details have `"retryable"` or
      `"retry_after"` (seconds), and not before that time. A longer `"retry_after"` than
      #{div(DSPex.PythonBridge.Backoff.cap(), 1000)} s makes the error final.
    * A call is not repeated if its deadline would pass before that.
  """

  alias DSPex.PythonBridge.{Backoff, Error}

  # In ascending order.
  @severities [:warning, :minor, :major, :critical]
  @recoveries [:immediate_retry, :backoff_retry, :circuit_break, :failover, :abandon]
  @aliases %{high: :major, medium: :minor}
  @words Map.new(@severities ++ Map.keys(@aliases), &{Atom.to_string(&1), &1})
  # How often a call is repeated at most.
  @repeats %{immediate_retry: 3, backoff_retry: 5, failover: 1}
  # Attempts after which an error is one step more serious, and after which a critical one is final.
  @raised_after 3
  @abandoned_after 2
  # Workers that may end while they have the same call; the call may be the reason.
  @most_deaths 2
  # Seconds: a longer "retry_after" is read as this.
  @longest_hint 1_000_000

  @circumstances [
    attempts: 1,
    idempotent: false,
    started: true,
    deaths: 0,
    others: true,
    all_affected: false,
    severity: nil,
    recovery: nil,
    remaining: :infinity,
    random: &:rand.uniform/0
  ]

  @enforce_keys [
    :category,
    :severity,
    :recovery,
    :repeat,
    :delay,
    :against_slot,
    :against_breaker
  ]
  defstruct @enforce_keys

  @type severity :: :critical | :major | :minor | :warning
  @type recovery :: :immediate_retry | :backoff_retry | :circuit_break | :failover | :abandon
  @type t :: %__MODULE__{
          category: atom(),
          severity: severity(),
          recovery: recovery(),
          repeat: :same_slot | :another_slot | nil,
          delay: non_neg_integer(),
          against_slot: boolean(),
          against_breaker: boolean()
        }

  @doc """
  Returns what to do after an error.

  ## Circumstances

    * `:attempts` - how often the call was tried, this time included; default 1
    * `:idempotent` - whether its command may run twice, default `false`
    * `:started` - whether the call was sent, so that it may have run unless the error has
      `"started" => false` in its details; default `true`
    * `:deaths` - how many workers have ended while they had it, this one included; default 0
    * `:others` - whether another slot takes calls, default `true`
    * `:all_affected` - whether all workers fail in this way, default `false`
    * `:severity`, `:recovery` - take the place of those of the rules; see `severity/1`
    * `:remaining` - ms until the call's deadline, or `:infinity` (default)
    * `:random` - a function that returns a number from 0 up to but not including 1, for the jitter

  Raises `ArgumentError` for other keys and for an unknown severity or recovery.

      iex> error = DSPex.PythonBridge.Error.new(:lm_error, "slow down", %{"retry_after" => 3})
      iex> decision = DSPex.PythonBridge.PoolErrorHandler.decide(error, idempotent: true)
      iex> {decision.recovery, decision.repeat, decision.delay, decision.against_breaker}
      {:backoff_retry, :same_slot, 3000, true}
  """
  @spec decide(Error.t(), keyword()) :: t()
  def decide(%Error{} = error, circumstances \\ []) do
    call = circumstances |> Keyword.validate!(@circumstances) |> Map.new() |> checked()
    rule = @rules[error.code] || Map.fetch!(@rules, error.category)
    first = if retryable?(error), do: :backoff_retry, else: rule.first
    severity = severity(call, rule.severity)
    recovery = recovery(error, call, rule, first, severity)
    {repeat, delay} = repeat(error, call, rule, recovery)

    %__MODULE__{
      category: error.category,
      severity: severity,
      recovery: recovery,
      repeat: repeat,
      delay: delay,
      against_slot: rule.slot? and error.details["exit_status"] != 0,
      against_breaker: rule.breaker? and started?(error, call) and first != :abandon
    }
  end

  @doc """
  Returns the severity that a word names; `high` and `medium` are other names of major and minor.

      iex> Enum.map(["high", :medium, :critical], &DSPex.PythonBridge.PoolErrorHandler.severity/1)
      [:major, :minor, :critical]

  Raises `ArgumentError` for any other word.
  """
  @spec severity(atom() | String.t()) :: severity()
  def severity(word) when is_binary(word) and is_map_key(@words, word), do: severity(@words[word])
  def severity(word) when word in @severities, do: word
  def severity(word) when is_map_key(@aliases, word), do: @aliases[word]

  def severity(word) do
    words = @severities |> Enum.reverse() |> Enum.join(", ")
    raise ArgumentError, "a severity must be one of #{words}, not #{inspect(word)}"
  end

  # Severity and recovery

  defp checked(%{recovery: recovery} = call) when recovery in [nil | @recoveries], do: call

  defp checked(%{recovery: recovery}) do
    words = Enum.join(@recoveries, ", ")
    raise ArgumentError, "a recovery must be one of #{words}, not #{inspect(recovery)}"
  end

  defp severity(%{severity: word}, _usual) when word != nil, do: severity(word)
  defp severity(%{all_affected: true}, _usual), do: :critical

  defp severity(%{attempts: attempts}, usual) when attempts > @raised_after do
    index = Enum.find_index(@severities, &(&1 == usual))
    Enum.at(@severities, index + 1, :critical)
  end

  defp severity(_call, usual), do: usual

  defp recovery(error, call, rule, first, severity) do
    if final?(error, call, severity) do
      :abandon
    else
      call.recovery || rule.by_severity[severity] || by_attempt(first, rule.later, call.attempts)
    end
  end

  defp final?(error, call, severity) do
    call.deaths >= @most_deaths or (severity == :critical and call.attempts > @abandoned_after) or
      error.details["retryable"] == false
  end

  defp by_attempt(first, later, attempts) when attempts == 1 or later == [], do: first
  defp by_attempt(_first, later, attempts), do: Enum.at(later, attempts - 2, List.last(later))

  defp retryable?(%Error{category: :python, details: details} = error) do
    details["retryable"] == true or
      (details["retryable"] != false and retry_after(error) != nil)
  end

  defp retryable?(_error), do: false

  # The ms that the error asks to wait, or nil.
  defp retry_after(%Error{details: %{"retry_after" => seconds}})
       when is_number(seconds) and seconds >= 0,
       do: round(min(seconds, @longest_hint) * 1000)

  defp retry_after(_error), do: nil

  # Repeating

  defp repeat(error, call, rule, recovery) do
    cond do
      not call.idempotent and started?(error, call) -> {nil, 0}
      call.attempts > Map.get(@repeats, recovery, 0) -> {nil, 0}
      recovery == :failover and not call.others -> {nil, 0}
      true -> error |> retry_after() |> in_time(call, rule, recovery)
    end
  end

  defp started?(error, call), do: call.started and error.details["started"] != false

  defp in_time(retry_after, call, rule, recovery) do
    moves? = rule.moves? or recovery == :failover
    repeat = if moves? and call.others, do: :another_slot, else: :same_slot
    delay = delay(recovery, rule.moves?, retry_after || 0, call)
    # An atom is greater than any number.
    if delay > Backoff.cap() or delay >= call.remaining, do: {nil, 0}, else: {repeat, delay}
  end

  defp delay(:immediate_retry, _moves?, retry_after, call) do
    max(Backoff.immediate(call.attempts), retry_after)
  end

  defp delay(:failover, _moves?, _retry_after, _call), do: 0
  # A backoff gives time to what has failed, and that worker will not be used again.
  defp delay(:backoff_retry, true, _retry_after, %{attempts: 1}), do: 0

  defp delay(:backoff_retry, _moves?, retry_after, call) do
    max(Backoff.exponential(call.attempts, call.random), retry_after)
  end
end
