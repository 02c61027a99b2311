defmodule DSPex.PythonBridge.Transport do
  @moduledoc """
  What an owner and its callers need of the way to a worker: a port to a process that the owner
  starts (`DSPex.PythonBridge.WorkerPort`), or a connection to a Unix socket that the operator
  names (`DSPex.PythonBridge.WorkerSocket`).

  Each is a module with a struct of the same name. The struct describes one worker; its `port`,
  an Erlang port in both cases, belongs to the process that called `open/1`, and carries frames
  with a 4-byte length. The worker loses its connection when that process ends.
  """

  alias DSPex.PythonBridge.{Error, WorkerPort, WorkerSocket}

  @typedoc "A worker. `os_pid` is nil while it is not known, or for good."
  @type worker :: %{
          :__struct__ => module(),
          :port => port(),
          :os_pid => pos_integer() | nil,
          optional(atom()) => term()
        }

  @typedoc "Why a connection has ended, in the terms of its transport."
  @type cause :: term()

  @doc """
  Starts a worker, or connects to one. Returns a line that says what to do if that is not
  possible.
  """
  @callback open(options :: keyword()) :: {:ok, worker()} | {:error, String.t()}

  @doc """
  Sends one frame without waiting for the worker to read. Any process may call it.

  Either the whole frame is sent, or none of it: `:busy` if the worker has not read what was sent
  before, `:closed` if the connection has ended.
  """
  @callback send(port(), iodata()) :: :ok | :busy | :closed

  @doc """
  Returns what a message to the owner says about the worker: a frame, `{:ended, cause}` if the
  worker has ended, `{:broken, cause}` if only the connection has, or `:other`.
  """
  @callback received(worker(), message :: term()) ::
              binary() | {:ended, cause()} | {:broken, cause()} | :other

  @doc "Ends the connection, and kills the worker if this host has started it."
  @callback kill(worker()) :: :ok

  @doc """
  Describes the end of a worker that was starting, or taking calls: as the rest of a sentence that
  begins with "the worker did not start: ", or as a whole sentence. Returns the details of the
  error, too.
  """
  @callback reason(worker(), :starting | :running, cause()) :: {String.t(), map()}

  @doc "Adds what is known about the process of a worker that has ended to its error."
  @callback explained(worker(), Error.t()) :: Error.t()

  @doc "Opens the transport that the options of a bridge ask for."
  @spec open(keyword()) :: {:ok, worker()} | {:error, String.t()}
  def open(options) do
    if options[:connect], do: WorkerSocket.open(options), else: WorkerPort.open(options)
  end
end
