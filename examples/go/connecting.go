// Runs a DSPy program in a worker at the other end of a Unix socket, with a tool in Go and a streamed
// answer: go run connecting.go. Needs nothing but the standard library. The socket is $BRIDGE_SOCKET, or
// /run/bridge/bridge.sock, where python -m bridge serve --listen unix:/run/bridge/bridge.sock listens.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync"
)

// longestFrame is the longest frame that this host accepts, as the worker's --max-frame is by default.
const longestFrame = 64 << 20

// Message is a request, a reply, an event or a call of the worker.
type Message struct {
	ID      any             `json:"id"`
	Command string          `json:"command,omitempty"`
	Args    any             `json:"args,omitempty"`
	Stream  bool            `json:"stream,omitempty"`
	Success *bool           `json:"success,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   string          `json:"error,omitempty"`
	Code    string          `json:"code,omitempty"`
	Event   string          `json:"event,omitempty"`
	Data    any             `json:"data,omitempty"`
}

// Tool is a function that programs can call.
type Tool func(args map[string]any) (any, error)

// Worker is a worker at the other end of a connection. Its methods can be called by many goroutines.
type Worker struct {
	connection net.Conn
	tools      map[string]Tool
	sending    sync.Mutex
	mutex      sync.Mutex
	calls      map[float64]chan Message
	lastID     float64
	ended      error
}

// Connect returns a worker of its own.
func Connect(path string, tools map[string]Tool) (*Worker, error) {
	connection, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	worker := &Worker{connection: connection, tools: tools, calls: map[float64]chan Message{}}
	go worker.receive()
	return worker, nil
}

// Call returns the result of a command. It passes events to onEvent, which may be nil.
func (worker *Worker) Call(command string, args any, onEvent func(event string, data any)) (json.RawMessage, error) {
	messages := make(chan Message, 16)
	worker.mutex.Lock()
	if worker.ended != nil {
		worker.mutex.Unlock()
		return nil, worker.ended
	}
	worker.lastID++
	id := worker.lastID
	worker.calls[id] = messages
	worker.mutex.Unlock()
	if err := worker.send(Message{ID: id, Command: command, Args: args, Stream: onEvent != nil}); err != nil {
		worker.connection.Close() // which ends all calls
	}
	for message := range messages {
		switch {
		case message.Event != "":
			onEvent(message.Event, message.Data)
		case *message.Success:
			return message.Result, nil
		default:
			return nil, fmt.Errorf("%s: %s", message.Code, message.Error)
		}
	}
	return nil, worker.ended
}

// Close ends the connection, and with it the worker.
func (worker *Worker) Close() error { return worker.connection.Close() }

// send writes a frame: the length of the payload in four bytes, big-endian, and the payload.
func (worker *Worker) send(message Message) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	worker.sending.Lock()
	defer worker.sending.Unlock()
	_, err = worker.connection.Write(append(frame, payload...))
	return err
}

func (worker *Worker) receive() {
	reader := bufio.NewReader(worker.connection)
	for {
		var length uint32
		if err := binary.Read(reader, binary.BigEndian, &length); err != nil {
			worker.end(err)
			return
		}
		if length > longestFrame {
			worker.end(errors.New("the frame is too long"))
			return
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(reader, payload); err != nil {
			worker.end(err)
			return
		}
		if length == 0 {
			continue // a heartbeat
		}
		fmt.Println(string(payload))
		var message Message
		if err := json.Unmarshal(payload, &message); err != nil {
			worker.end(err)
			return
		}
		worker.dispatch(message)
	}
}

func (worker *Worker) dispatch(message Message) {
	if message.Command != "" {
		go worker.answer(message)
		return
	}
	id, _ := message.ID.(float64)
	worker.mutex.Lock()
	messages := worker.calls[id]
	if message.Success != nil {
		delete(worker.calls, id)
	}
	worker.mutex.Unlock()
	if messages != nil {
		messages <- message
	}
}

// answer runs a tool and sends the reply.
func (worker *Worker) answer(call Message) {
	args, _ := call.Args.(map[string]any)
	name, _ := args["name"].(string)
	given, _ := args["args"].(map[string]any)
	reply := Message{ID: call.ID, Success: new(bool)}
	result, err := any(nil), fmt.Errorf("there is no tool %q", name)
	if tool := worker.tools[name]; tool != nil {
		result, err = tool(given)
	}
	if err == nil {
		reply.Result, err = json.Marshal(result)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	*reply.Success = err == nil
	if err := worker.send(reply); err != nil {
		worker.connection.Close()
	}
}

// end fails all open calls and later ones.
func (worker *Worker) end(err error) {
	worker.connection.Close()
	worker.mutex.Lock()
	defer worker.mutex.Unlock()
	worker.ended = fmt.Errorf("the worker has ended: %w", err)
	for id, messages := range worker.calls {
		delete(worker.calls, id)
		close(messages)
	}
}

type object = map[string]any

func main() {
	path := os.Getenv("BRIDGE_SOCKET")
	if path == "" {
		path = "/run/bridge/bridge.sock"
	}
	worker, err := Connect(path, map[string]Tool{
		"temperature": func(args map[string]any) (any, error) {
			return fmt.Sprintf("It is 21 degrees in %s.", args["city"]), nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer worker.Close()
	preparations := []struct {
		command string
		args    object
	}{
		{"hello", object{"offers": object{"tools": true}}},
		{"configure_lm", object{"provider": "offline"}},
		{"register_tools", object{"tools": []object{{
			"name": "temperature", "description": "The temperature in a city.",
			"args": object{"city": object{"type": "string"}}}}}},
		{"create_program", object{"id": "weather", "program_type": "react", "signature": object{
			"inputs": []object{{"name": "question"}}, "outputs": []object{{"name": "answer"}}}}},
	}
	for _, each := range preparations {
		if _, err := worker.Call(each.command, each.args, nil); err != nil {
			log.Fatal(err)
		}
	}
	question := object{"program_id": "weather", "inputs": object{"question": "What is the temperature in Graz?"}}
	result, err := worker.Call("execute_program", question, func(string, any) {})
	if err != nil {
		log.Fatal(err)
	}
	if !strings.Contains(string(result), "21 degrees") {
		log.Fatal("another answer was expected")
	}
}
